"""Files that start a plan elsewhere: systemd, compose, Kubernetes, SkyPilot, Ray; one module a kind."""
