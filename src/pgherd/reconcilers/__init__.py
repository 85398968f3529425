"""What must stay true: each looks at what is wished and what is observed, and acts; none takes input."""
