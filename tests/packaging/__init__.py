"""Tests of what a release and a deployment consist of: packaging/, tools/, and the workflows."""
