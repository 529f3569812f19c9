"""The projection every matrix of the model goes through."""
