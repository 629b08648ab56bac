//! What runs inside a node, a pod or the client: serve, fetch, capture.
