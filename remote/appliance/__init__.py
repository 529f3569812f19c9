"""What verbs ask of the appliance on a host: models, packs, the service, measurements."""
