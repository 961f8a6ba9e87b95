"""The routes, one file per thing that they are about."""

from api.routes import figure, health, jobs, keys, models, results, saes

ROUTERS = (jobs.router, results.router, figure.router, models.router, saes.router, keys.router, health.router)
