"""The teachers' weights, and `python -m kdcourse.weights` that trains them again."""
