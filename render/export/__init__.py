"""Episodes for other viewers: recordings of Rerun, pages without a server."""
