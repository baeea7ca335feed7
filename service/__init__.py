"""Pushline: a Server-Sent Events push service. Imports nothing, because gevent must patch first."""
