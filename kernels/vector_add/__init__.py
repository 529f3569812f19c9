"""out = a + b, element by element: the smallest kernel that walks the whole path from Python to SASS."""
