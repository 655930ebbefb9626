"""What goes over the wire: positions, messages, frames, and what carries them.

::

    replication ──▶ transport ◀── socket_stream ──▶ plain_socket ──▶ finding ──▶ frames
                            ◀──── libpq                  ▲
                                                         └── copy_socket (of the copy)
"""
