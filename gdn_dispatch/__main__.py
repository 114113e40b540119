"""``python -m gdn_dispatch`` is ``gdn-dispatch``."""

from gdn_dispatch.cli import main

raise SystemExit(main())
