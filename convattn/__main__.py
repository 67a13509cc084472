"""``python -m convattn`` is the command ``convattn``."""

from convattn.cli import main

raise SystemExit(main())
