"""Parts of several adapters: norm layers, entropy, a carried optimizer, teachers, views, a bank of images."""
