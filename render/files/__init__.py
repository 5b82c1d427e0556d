"""Pictures and videos as files, in the folders that users know."""
