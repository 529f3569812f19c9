"""A host made ready: examined, bootstrapped, with detached jobs; and the site that verbs work on."""
