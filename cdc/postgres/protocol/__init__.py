"""What goes over the wire: positions, messages, frames, and what carries them."""
