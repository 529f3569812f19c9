"""What an encoding of the weights costs: a pack against the bf16 pack of the same weights, by their answers.

`heldout.txt` was written for this, in the manner of manual pages; the demo model never saw it.
"""
