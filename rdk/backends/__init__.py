"""The backends; dispatch imports them by name. `rdk.backends` itself is the public function: `from rdk.backends import eager`."""
