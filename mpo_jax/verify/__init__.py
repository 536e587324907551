"""One answer against the truth: right, wrong or undecided, and by which rule."""
