# A PostgreSQL service with a user, a database and a pool. See README.md for how to run it against pgherd.

terraform {
  required_providers {
    exoscale = {
      source = "exoscale/exoscale"
    }
  }
}

# Key and secret come from EXOSCALE_API_KEY and EXOSCALE_API_SECRET.
provider "exoscale" {}

variable "zone" {
  description = "Zone of the instance, as `pgherd env` prints it; it must be one that the provider knows."
  type        = string
  default     = "ch-gva-2"
}

resource "exoscale_dbaas" "shop" {
  zone = var.zone
  name = "shop"
  type = "pg"
  plan = "startup-4"

  # `terraform destroy` is refused while this is true, which is the provider's default.
  termination_protection = false

  maintenance_dow  = "sunday"
  maintenance_time = "03:00:00"

  pg = {
    version         = "15"
    backup_schedule = "01:30"
    ip_filter       = ["10.0.0.0/8"]

    pg_settings = jsonencode({
      timezone                   = "Europe/Zurich"
      log_min_duration_statement = 1000
      autovacuum = {
        autovacuum_naptime = 30
      }
    })

    pgbouncer_settings = jsonencode({
      server_idle_timeout = 300
    })
  }
}

resource "exoscale_dbaas_pg_user" "app" {
  zone     = var.zone
  service  = exoscale_dbaas.shop.name
  username = "app"
}

resource "exoscale_dbaas_pg_database" "orders" {
  zone          = var.zone
  service       = exoscale_dbaas.shop.name
  database_name = "orders"
}

resource "exoscale_dbaas_pg_connection_pool" "orders" {
  zone          = var.zone
  service       = exoscale_dbaas.shop.name
  name          = "orders"
  database_name = exoscale_dbaas_pg_database.orders.database_name
  username      = exoscale_dbaas_pg_user.app.username
  mode          = "transaction"
  size          = 10
}

data "exoscale_database_uri" "shop" {
  zone = var.zone
  name = exoscale_dbaas.shop.name
  type = "pg"
}

output "admin_uri" {
  value     = data.exoscale_database_uri.shop.uri
  sensitive = true
}

output "app_password" {
  value     = exoscale_dbaas_pg_user.app.password
  sensitive = true
}

output "pool_uri" {
  value     = exoscale_dbaas_pg_connection_pool.orders.connection_uri
  sensitive = true
}

output "ca_certificate" {
  value     = exoscale_dbaas.shop.ca_certificate
  sensitive = true
}
