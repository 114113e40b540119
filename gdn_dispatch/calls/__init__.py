"""A public call from its arguments to the backend's function: validated, bound, sent."""
