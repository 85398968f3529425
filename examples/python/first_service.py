"""Create a service with the official SDK, use it over verified TLS, delete it.

pip install exoscale psycopg[binary]
eval "$(pgherd env)"
python first_service.py
"""

import os

import psycopg
from exoscale.api.v2 import Client

NAME = "sdk-demo"

key, secret, url = (os.environ[f"EXOSCALE_API_{name}"] for name in ("KEY", "SECRET", "ENDPOINT"))
client = Client(key, secret, url=url)

client.wait(client.create_dbaas_service_pg(name=NAME, plan="hobbyist-2", ip_filter=["127.0.0.1/32"])["id"])
try:
    params = client.get_dbaas_service_pg(name=NAME)["uri-params"]
    revealed = client.reveal_dbaas_postgres_user_password(service_name=NAME, username=params["user"])
    with open("pgherd-ca.pem", "w") as file:
        file.write(client.get_dbaas_ca_certificate()["certificate"])
    tls = {"sslmode": "verify-full", "sslrootcert": "pgherd-ca.pem"}
    with psycopg.connect(**(params | {"password": revealed["password"]} | tls)) as connection:
        print(connection.execute("select version()").fetchone()[0])

    client.wait(client.update_dbaas_service_pg(name=NAME, work_mem=8, pg_settings={"jit": False})["id"])
    print(client.get_dbaas_service_pg(name=NAME)["pg-settings"])
finally:
    client.wait(client.delete_dbaas_service(name=NAME)["id"])
