"""What is looked at to tell whether a deployment is sound."""
