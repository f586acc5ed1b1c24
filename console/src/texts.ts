// Every word that the page says, so that they can be read together. Names are those that people hear and look for.
export const texts = {
  name: "Freehold",
  pages: {
    chat: "Chat",
    compare: "Compare",
    models: "Models",
    engine: "Engine",
    usage: "Usage",
    runs: "Runs",
    deployments: "Deployments",
    keys: "Keys",
    settings: "Settings",
  },
  message: "Message",
  send: "Send",
  stop: "Stop",
  newChat: "New chat",
  skip: "Skip to the page",
  logIn: "Log in",
  logOut: "Log out",
  key: "Key",
  you: "You",

  // --- what pages share --------------------------------------------------------------------------------
  parts: {
    close: "Close",
    cancel: "Cancel",
    dismiss: "Dismiss",
    loading: "Loading",
    again: "Try again",
    more: "More",
    morePages: "More pages",
    broken: (why: string) => `This part of the page failed: ${why}. The rest works.`,
    notLoaded: "The page's files cannot be loaded. The server may have been stopped, or updated since the page opened.",
  },

  // --- chat --------------------------------------------------------------------------------------------

  // --- text, code, links and math ----------------------------------------------------------------------
  text: {
    code: "Code",
    copyCode: "Copy code",
    copied: "Copied",
    notCopied: "Not copied",
    table: "Table",
    image: "Image (not loaded)",
    imageNotLoaded: "Pictures in a text are never loaded: whoever owns the address would learn that you read it",
    done: "done",
    notDone: "not done",
    openLink: "Open this address?",
    openLinkWhy: (host: string) => `It carries data to ${host}. A model or a tool wrote it; look whether it holds something of yours.`,
    open: "Open",
    cancel: "Cancel",
    copyAddress: "Copy address",
  },

  // --- compare -----------------------------------------------------------------------------------------

  // --- models ------------------------------------------------------------------------------------------

  // --- engine ------------------------------------------------------------------------------------------

  // --- usage -------------------------------------------------------------------------------------------

  // --- runs and deployments ----------------------------------------------------------------------------

  // --- keys, logging in --------------------------------------------------------------------------------

  // --- tools and their approval ------------------------------------------------------------------------

  // --- settings ----------------------------------------------------------------------------------------
} as const;
