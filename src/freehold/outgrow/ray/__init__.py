"""Ray Serve: an app of one file whose replicas are engine processes, and the cluster that it runs on."""
