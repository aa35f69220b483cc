"""Where pieces are computed: processes on this machine, or a Ray cluster."""
