"""What plugs into Lucent's render loop, and a loop of our own."""
