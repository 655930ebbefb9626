"""What people would use instead, one peer a module, each as durable as the log: on disk, flushed.

Servers are started here, on a free port of the loopback interface, with their data in the
benchmark's own directory, so that all share one disk; they end with the benchmark.
"""
