"""Floor 0: declarations of the operating system, OpenSSL and nghttp2. No code of our own."""
