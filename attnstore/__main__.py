"""``python -m attnstore``."""

from attnstore.cli import main

if __name__ == "__main__":
    main()
