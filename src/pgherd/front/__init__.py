"""A way for Terraform's provider, which calls fixed names of the hosted service alone, to this instance."""
