"""pgherd: managed PostgreSQL that you run yourself, behind the Exoscale DBaaS PostgreSQL API."""
