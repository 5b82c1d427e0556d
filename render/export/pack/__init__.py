"""The viewer with its answers in one HTML file, beside a small store: opens with no server."""
