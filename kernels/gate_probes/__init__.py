"""Small kernels that ask what a chip and a compiler make of each precision, by each way of writing it.

`probes` lists them as data, `tiles` holds their sources, `formats` the number formats, `expected` inputs and
FP64 results, `compile` the way to bytecode. Only `tiles` and `compile` need the compiler. They serve no
model, and no proof of the appliance's kernels covers them.
"""
