"""Knowledge distillation, by doing: the package behind the course."""
