"""``python -m offseg_d2.web``."""

from offseg_d2.web.app import main

if __name__ == "__main__":
    main()
