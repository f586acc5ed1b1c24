"""Collections of documents: parsed, cut into chunks, indexed by words and vectors, searched, and cited in answers.

Knows files, places and one SQLite file a collection; knows no engine (local.py alone loads an embedder) and no route.
Path: DocumentCollection.add -> read_document -> cut -> CollectionStore.put
"""
