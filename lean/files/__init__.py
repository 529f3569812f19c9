"""Files as the rest of `lean` handles them: written whole or not at all, and read without trusting a name.

`exclusive` is one writer at a time, `staging` writing beside and renaming, `safe_path` reading a directory
that somebody else wrote, `hashing` hashes in bounded memory. Standard library only. `lean.transfer` has its
own: it is carried to hosts alone.
"""
