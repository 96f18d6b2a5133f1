"""Where events leave: the audit and the exporter."""
