/** What the person before the page can mend: its message says what was found and what to do, and is shown alone. */
export class UserError extends Error {}
