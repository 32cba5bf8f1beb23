"""What an entry is: its bytes, its checks and its metadata. Pure: bytes in and out."""
