"""The command-line tools: parse, configure, one library call, print."""
