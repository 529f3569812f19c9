"""Reading memory and nothing else: what the other kernels' reading is measured against."""
