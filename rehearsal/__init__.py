"""A stand-in Google Cloud on one Linux machine, whose instances are real Debian 12 machines.

Unmodified Google clients talk to it: ``python -m rehearsal exec -- CMD`` runs CMD where Google's
host names resolve to loopback addresses served with a local certificate authority. Nothing in the
product knows about it.

One daemon holds the cloud. A request comes in through ``gateway``, is matched and validated against
Google's own discovery documents (``discovery``), and reaches a handler (``compute``, ``instances``,
``projects``, ``secrets``). What the resources say is made so by ``network`` (namespaces, nftables)
and ``machine`` (systemd-nspawn). State lives in memory and in one directory that ``down`` removes.
"""
