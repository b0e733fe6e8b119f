"Unpacks a wheel's Python files into this environment, leaving its shared libraries out."

import sys
import sysconfig
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sysconfig.get_path("purelib"), [n for n in wheel.namelist() if ".so" not in n.rpartition("/")[2]])
