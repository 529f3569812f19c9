"""Other systems on the same host, to be measured beside ours: installed apart, served, and stopped again.

`systems` says what they are and how each is run, `install` makes their environments, `gguf_file` writes a
checkpoint as llama.cpp reads it, `service` keeps one running and proves that its memory came back.
"""
