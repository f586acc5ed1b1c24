"""Tools that a model may call: programs of others, reached by the Model Context Protocol."""
