"""Ways into programs that know nothing of this package. None is imported unless asked for.

Every integration goes through an extension point its host offers; none assigns into the host's
modules or classes.
"""
