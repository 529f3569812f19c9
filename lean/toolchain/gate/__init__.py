"""The precision gate: what a compiler and a chip make of each precision, by each way of writing it."""
