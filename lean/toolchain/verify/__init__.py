"""Every stage of the smoke kernel from source to machine code, and its result where there is a GPU."""
