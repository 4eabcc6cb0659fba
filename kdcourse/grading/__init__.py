"""Grading notebooks: assign → run (sandbox) → compare → report.

A submission's process only computes; another process, which holds the reference answers, compares.
What an exercise checks is declared in its master notebook, so this package grades any course.
"""
