"""Exit with 0 while the service in this container turns, else with 1 and why."""

import os
import sys
import urllib.request

URL = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/livez"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine, whatever HTTP_PROXY says."""

try:
    DIRECT.open(URL, timeout=4).close()
except OSError as error:  # also an HTTPError, which a status other than 200 is
    sys.exit(f"{URL}: {error}")
